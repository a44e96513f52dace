"""The documentation's site: `make docs` builds it by MkDocs. What its pages hold beyond `docs/` is made here."""
