"""Lossless deltas of fine-tunes: a checkpoint as what it differs from its parent in, byte for byte restorable.

    plans       how the words of a tensor become bytes that compress: with the parent, exponents apart from the rest
    kernels     the loops of that
    chunks      a block of a tensor, compressed and back
    layout      the file of a delta, and what is believed of it
    parents     which tensor of the parent a tensor came from
    encode      a safetensors file to a delta
    decode      and back
    whole       other files
    manifest    the list of a packed folder
    folders     what is in a folder; writing one aside, and removing one
    scratch     memory that is used again
    files       reading, writing and threads

`regraft.zoo.pack` packs whole folders with it.
"""

from regraft.delta.decode import decode_file
from regraft.delta.encode import Coded, encode_file
from regraft.delta.manifest import Manifest, is_pack, read_manifest
from regraft.delta.parents import Parents

__all__ = ["Coded", "Manifest", "Parents", "decode_file", "encode_file", "is_pack", "read_manifest"]
