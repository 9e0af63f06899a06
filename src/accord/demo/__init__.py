"""The film demo: one task among others, imported by nothing but its own command."""
