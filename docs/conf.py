"""Settings of the documentation's build: ``make docs``."""

project = "plait"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
html_theme = "furo"
html_title = "plait"
exclude_patterns = ["_build"]
autodoc_inherit_docstrings = False
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_class_signature = "separated"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True  # attributes stand in the class description, not a second time as members
default_role = "code"  # single backquotes in docstrings
suppress_warnings = ["myst.xref_missing"]  # links into the repository, such as ../README.md
