"""What all tests share."""

import signal

from hypothesis import settings

# Machines are shared: how long an example takes says nothing about the code.
settings.register_profile("any machine", deadline=None)
settings.load_profile("any machine")

# A script's background jobs ignore interrupts, and their children inherit that: no test of interrupts would see one.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
