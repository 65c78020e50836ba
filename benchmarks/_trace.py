"""Placeholder"""
def install(path): pass
