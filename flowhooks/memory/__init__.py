"""What a run needs on a card, counted before its weights load.

``live`` counts the bytes of tensors as they come and go, on torch's meta device as well as on a real one; ``attention``
gives meta tensors the attention of a fused kernel; ``twin`` builds a small pipeline of the same classes from which the
probe learns; ``step`` runs the run's own step on the network at full size, without numbers; ``plan`` puts this
together for a run, ``fit`` looks for the cheapest change under which it fits a card. ``check --memory`` prints it.
"""

from __future__ import annotations
