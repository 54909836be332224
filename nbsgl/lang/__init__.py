"""The language: programs that grow branches by text and holes, run by whatever `Backend` answers."""
