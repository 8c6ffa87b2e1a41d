"""The public names, for type checkers and for __init__.py, which reads them here."""

from mmrt import errors as errors
from mmrt import models as models
from mmrt.core import kernels as kernels
from mmrt.core import numa as numa
from mmrt.core import quant as quant
from mmrt.core import streaming as streaming
from mmrt.core.kernels import cpu_info as cpu_info
from mmrt.core.mapping import Mapping as Mapping
from mmrt.core.residency import Residency as Residency
from mmrt.core.sampling import Sampling as Sampling
from mmrt.core.tensor import Tensor as Tensor
from mmrt.errors import ArgumentError as ArgumentError
from mmrt.errors import DeniedFileError as DeniedFileError
from mmrt.errors import FileError as FileError
from mmrt.errors import FormatError as FormatError
from mmrt.errors import InUseError as InUseError
from mmrt.errors import MissingFileError as MissingFileError
from mmrt.errors import MmrtError as MmrtError
from mmrt.errors import NoArrayError as NoArrayError
from mmrt.errors import NotFoundError as NotFoundError
from mmrt.errors import OutOfMemoryError as OutOfMemoryError
from mmrt.errors import UnsupportedError as UnsupportedError
from mmrt.errors import ViewError as ViewError
from mmrt.files import default_model as default_model
from mmrt.files import formats as formats
from mmrt.files import hub as hub
from mmrt.files import policies as policies
from mmrt.files.formats import TensorFile as TensorFile
from mmrt.files.formats import open as open
from mmrt.files.quantizer import quantize as quantize
from mmrt.memory import counters as counters
from mmrt.memory.budget import Budget as Budget
from mmrt.memory.system import os_info as os_info
from mmrt.run import sequence as sequence
from mmrt.run.conversation import Conversation as Conversation
from mmrt.run.generation import Options as Options
from mmrt.run.generation import Stream as Stream
from mmrt.run.generation import Text as Text
from mmrt.run.model import Model as Model
from mmrt.run.sampler import Sampler as Sampler
from mmrt.run.sequence import Sequence as Sequence
from mmrt.sight import pagetables as pagetables
from mmrt.sight import trace as trace
from mmrt.text.tokenizer import Tokenizer as Tokenizer

__version__: str
