"""What people are shown, by the command, in notebooks and on pages.

`_progress` has bars and lines, `_text` figures as text, `_manifest` the tables of a manifest.
"""
