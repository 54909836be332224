"""SGLang's place of `ProgramState`."""

from nbsgl.lang.group import ProgramStateGroup
from nbsgl.lang.state import ProgramState

__all__ = ["ProgramState", "ProgramStateGroup"]
