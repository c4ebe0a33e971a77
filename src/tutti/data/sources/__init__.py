"""Documents of files, whatever their format: one small module per kind, behind `documents.documents`."""
