"""SGLang's place of `ProgramState`."""

from nbsgl.lang.state import ProgramState, ProgramStateGroup

__all__ = ["ProgramState", "ProgramStateGroup"]
