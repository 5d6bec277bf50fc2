"""An exported optimizer without a file: the class itself, made from the text that would be one.

The class is preferred to ``RuleOptimizer`` (``tasks/optim/rule_optimizer.py``), which runs any
rule, because it is what ``l2o export`` writes: one code to test, multi-tensor functions,
``torch.compile``, shards that stay where they are, constants that are hyper-parameters.

What is executed is text that this package wrote from a program, whose names and numbers passed the
parser's whitelist; text from elsewhere never is. Optimizers are pickled as their program, and the
class is made again where they are read, so they travel to processes that never saw it.
"""

from __future__ import annotations

import hashlib
import linecache
import sys
from functools import lru_cache
from types import ModuleType
from typing import Any

from torch.optim import Optimizer

from search.export import class_name, to_source
from search.language.program import Program, parse


@lru_cache(maxsize=256)
def to_class(
    program: Program, name: str, provenance: str, lr: float | None = None, weight_decay: float = 0.0
) -> type[Optimizer]:
    """What importing the file of ``to_source`` would give; the same class every time.

    Raises as ``to_source`` does.
    """
    source = to_source(program, name, provenance, lr, weight_decay)
    digest = hashlib.blake2b(source.encode(), digest_size=8).hexdigest()
    module = ModuleType(f"{__name__}.{class_name(name)}_{digest}")
    module.__file__ = f"<{module.__name__}>"
    # Tracebacks, inspect.getsource and torch.compile find the text and the module here.
    lines = source.splitlines(keepends=True)
    linecache.cache[module.__file__] = (len(source), None, lines, module.__file__)
    sys.modules[module.__name__] = module
    exec(compile(source, module.__file__, "exec"), module.__dict__)
    made = getattr(module, class_name(name))

    def reduce(self: Optimizer, protocol: int) -> tuple[Any, ...]:
        recipe = (str(program), name, provenance, lr, weight_decay)
        return _new, recipe, self.__getstate__()

    made.__reduce_ex__ = reduce
    return made


def _new(text: str, *rest: Any) -> Optimizer:
    """An optimizer whose ``__setstate__`` is about to be called."""
    made = to_class(parse(text), *rest)
    return made.__new__(made)
