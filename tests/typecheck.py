"""The run-time checker for jaxtyping annotations in tests: an int is accepted where a float is declared (PEP 484)."""

import beartype

check = beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))
