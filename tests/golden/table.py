"""The golden pairs, all of them."""

from adapted_pairs import ADAPTED
from family_pairs import FAMILIES
from llama_pairs import LLAMA
from quantized_pairs import QUANTIZED

CASES = LLAMA | FAMILIES | ADAPTED | QUANTIZED
