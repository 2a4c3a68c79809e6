# Everything CI runs
default: lint types test

# Style and layout
lint:
    ruff check
    ruff format --check

# Types, strictly
types:
    mypy

# All tests; the generated docs are compared as well
test *words:
    pytest {{ words }}

# The slow tests alone
slow:
    pytest -m slow

# Write the generated pages anew
docs:
    python docs/generate.py

# Mend what can be mended
fmt:
    ruff check --fix
    ruff format
