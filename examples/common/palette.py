"""Colours, markers and dashes of the figures, the package's colours among them."""

from keras_osgd.plots.style import STYLES as _STYLES

_BLUE, _RED, _GREEN, _PURPLE, _SKY, _ORANGE, _BLACK = (color for color, *_ in _STYLES)
_GREY = "#777777"

# More than the package has, for figures of many methods. The markers and dashes keep
# curves apart in grey print.
STYLES = (
    (_RED, "o", "-"),
    (_BLUE, "s", "--"),
    (_GREEN, "^", "-."),
    (_PURPLE, "D", ":"),
    (_BLACK, "v", "--"),
    (_SKY, "P", "-"),
    (_ORANGE, "X", "-."),
    (_GREY, "<", ":"),
    (_GREEN, "p", "--"),
    (_PURPLE, ">", "-"),
    (_ORANGE, "h", ":"),
    (_SKY, "d", "-."),
    (_BLUE, "*", "--"),
    (_GREY, "8", "-"),
)
