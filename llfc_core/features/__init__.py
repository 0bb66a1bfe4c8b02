"""Features of a network, layer by layer, as its forward pass runs."""

from llfc_core.features.inputs import inputs_of
from llfc_core.features.taps import ACTIVATIONS, Layer, Taps, flatten

__all__ = ["ACTIVATIONS", "Layer", "Taps", "flatten", "inputs_of"]
