"""The HTTP door of an engine: SGLang's routes for programs on other machines or in other processes."""
