"""Frozen weights in few bits: which backends hold them, which layers they are put into, and what a plain weight is.

``table`` says without torch what each backend holds and needs; ``settings`` makes the backend's own configuration of a
component; ``layers`` chooses layers by the structure of a network; ``convert`` puts quantised layers in their place;
``plain`` gives a weight back as plain numbers.
"""

from __future__ import annotations
