NAMES = ()
load = None
