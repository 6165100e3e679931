"""What a canvas may say: languages, and the readouts that turn a finished canvas into a document of one.

Bytes, token ids and numpy arrays; no torch, and no strings of a chat format but those that
`Vocabulary.markers` names.
"""
