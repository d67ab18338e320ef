NAMES = ()
UNBALANCED = ()
load = None
