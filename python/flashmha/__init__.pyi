"""What `import flashmha` gives, for type checkers: names that are imported when they are asked for
included."""

from . import flash_attn as flash_attn
from . import transformers as transformers
from ._native import __version__ as __version__
from ._native import num_gpus as num_gpus
from ._native import num_threads as num_threads
from ._native import set_num_threads as set_num_threads
from .attention import Gradients as Gradients
from .attention import attention as attention
from .attention import attention_backward as attention_backward
from .attention import attention_with_kvcache as attention_with_kvcache
from .errors import DeviceError as DeviceError
from .errors import Error as Error
from .errors import FileError as FileError
from .errors import InvalidArgument as InvalidArgument
from .errors import OutOfMemory as OutOfMemory
from .errors import Unsupported as Unsupported
from .install import install_as_flash_attn as install_as_flash_attn
from .model import AdamW as AdamW
from .model import Generated as Generated
from .model import Loss as Loss
from .model import Model as Model
from .model import Parameter as Parameter
from .model import Tokenizer as Tokenizer
from .modules import FlashMultiHeadAttention as FlashMultiHeadAttention
from .modules import KVCache as KVCache
from .training import PackedDataset as PackedDataset
from .training import StepRecord as StepRecord
from .training import Trainer as Trainer
from .training import TrainingResult as TrainingResult

__all__: list[str]
