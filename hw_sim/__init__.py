"""The integer simulator: reference.py defines, the rest counts, times and prices."""
