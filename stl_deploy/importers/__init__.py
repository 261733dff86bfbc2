"""Importers: a trained model to a float NIR graph and checked parameters."""
