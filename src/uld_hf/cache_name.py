"""The name under which models take and return their cache: transformers 5.24 has changed it."""

import transformers
from packaging.version import Version


CACHE = "cache" if Version(transformers.__version__) >= Version("5.24") else "past_key_values"
