"""Recipes of merges: as data, from YAML, from mergekit."""
