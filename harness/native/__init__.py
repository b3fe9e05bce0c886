"""An independent implementation of Gemma 4 for text, images, sound and video, in PyTorch.

It is an island: it shares no code with the engines it is compared with, nor with the rest of the harness.
"""

from .audio_features import audio_tokens, waveform_tokens
from .cache import Cache
from .chat import ChatStyle, read_chat_style, render_chat
from .image import contract_size, reference_size, soft_tokens
from .inputs import Prepared
from .model import Gemma4
from .tap import Recorder, Tap, Transplant
from .video import Video, sample_indices

__all__ = [
    "Cache",
    "ChatStyle",
    "Gemma4",
    "Prepared",
    "Recorder",
    "Tap",
    "Transplant",
    "Video",
    "audio_tokens",
    "contract_size",
    "read_chat_style",
    "reference_size",
    "render_chat",
    "sample_indices",
    "soft_tokens",
    "waveform_tokens",
]
