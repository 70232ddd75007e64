from .building import build_sense_dictionary
