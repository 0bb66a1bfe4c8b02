"""Networks by name. Each is a plain ``nn.Module`` built from a frozen, JSON-able `Net`."""

from llfc_core.nets.mlp import MLP
from llfc_core.nets.net import NETS, Net, build
from llfc_core.nets.resnet20 import ResNet20
from llfc_core.nets.vgg import VGG16

__all__ = ["MLP", "NETS", "VGG16", "Net", "ResNet20", "build"]
