"""How each aten op becomes graph nodes: one dict literal a module, all gathered here."""

from __future__ import annotations

from typing import Final

from faq_deploy.aten.arithmetic import ARITHMETIC
from faq_deploy.aten.elementwise import ELEMENTWISE
from faq_deploy.aten.pools import POOLS
from faq_deploy.aten.shapes import SHAPES
from faq_deploy.aten.weighted import WEIGHTED_OPS
from faq_deploy.walk import Handler

__all__ = ["HANDLERS"]

HANDLERS: Final[dict[str, Handler]] = {**WEIGHTED_OPS, **ELEMENTWISE, **ARITHMETIC, **POOLS, **SHAPES}
