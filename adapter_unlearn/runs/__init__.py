"""Run folders: files only, written whole or not at all."""
