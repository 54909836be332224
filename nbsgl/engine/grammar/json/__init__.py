"""JSON schemas as grammars: what a schema says about each type (cases), and how the texts of that are spelt (forms)."""
