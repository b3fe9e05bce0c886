"""An independent implementation of Gemma 4 for text and images, in PyTorch.

It is an island: it shares no code with the engines it is compared with, nor with the rest of the harness.
"""

from .cache import Cache
from .image import contract_size, reference_size, soft_tokens
from .model import Gemma4, Prepared
from .tap import Recorder, Tap, Transplant

__all__ = [
    "Cache",
    "Gemma4",
    "Prepared",
    "Recorder",
    "Tap",
    "Transplant",
    "contract_size",
    "reference_size",
    "soft_tokens",
]
