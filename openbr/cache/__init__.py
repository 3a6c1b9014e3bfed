"""Room 4: a request's answer from an answer that was given before, or from one on its way.

In: a ChatRequest, its Caller, the deployment that would serve it, and how to ask that one.
Out: a ChatStream or a Completion whose `answer.cache` says where it came from. key.py tells which
requests are the same, control.py what the caller's Cache-Control asks for, kept.py and replay.py
hold an answer and turn its events into a body and back, flight.py shares one upstream call,
disk.py outlives the process.
"""

from openbr.cache.response_cache import ResponseCache, ResponseCacheStats

__all__ = ["ResponseCache", "ResponseCacheStats"]
