"""openbr: every AI model a person uses, behind one small local gateway."""

__version__ = "0.1.0"
