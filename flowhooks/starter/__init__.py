"""Write the first run for a folder of images: what the folder holds, what the model needs, what fits the card."""

from __future__ import annotations

from flowhooks.starter.draft import Draft, draft, methods_offered, refuse_existing, write_draft

__all__ = ["Draft", "draft", "methods_offered", "refuse_existing", "write_draft"]
