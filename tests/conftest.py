"""What all tests share: no test is decided by timing, and Ctrl-C is listened to."""

import signal

from hypothesis import settings

settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

# A shell starts its background jobs with Ctrl-C ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
