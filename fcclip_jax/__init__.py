"""FC-CLIP in JAX: open-vocabulary segmentation with a single frozen convolutional CLIP (Yu et al., NeurIPS 2023).

`fcclip_jax.Segmenter`, `fcclip_jax.Result` and `fcclip_jax.Vocabulary` are imported when they are first used: importing the
package alone imports neither JAX nor NumPy.
"""

import importlib
import importlib.metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    __version__: str
    from fcclip_jax.inference.results import Result
    from fcclip_jax.inference.segmenter import Segmenter
    from fcclip_jax.text.vocabulary import Vocabulary
else:
    _MODULES = {
        "Result": "fcclip_jax.inference.results",
        "Segmenter": "fcclip_jax.inference.segmenter",
        "Vocabulary": "fcclip_jax.text.vocabulary",
    }

    def __getattr__(name: str) -> Any:
        if name == "__version__":
            try:
                return importlib.metadata.version("fcclip-jax")
            except importlib.metadata.PackageNotFoundError:  # a checkout that is not installed
                return "unknown"
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(importlib.import_module(_MODULES[name]), name)

    def __dir__() -> list[str]:
        return sorted([*_MODULES, "__version__"])


__all__ = ["Result", "Segmenter", "Vocabulary"]
