"""The zip archives of torch.save(), read without torch: which bytes of the file are which tensor.

Only what a state dict needs is unpickled: nothing that the file names is imported or run.

SPDX-License-Identifier: MIT
"""

import collections
import pickle
import struct
import zipfile

from .broken import Broken

STORAGES = {"BFloat16Storage": ("BF16", 2), "HalfStorage": ("F16", 2), "FloatStorage": ("F32", 4),
            "DoubleStorage": ("F64", 8), "LongStorage": ("I64", 8), "IntStorage": ("I32", 4),
            "ShortStorage": ("I16", 2), "CharStorage": ("I8", 1), "ByteStorage": ("U8", 1), "BoolStorage": ("BOOL", 1)}
LOCAL_HEADER = 30
LOCAL_MAGIC = b"PK\x03\x04"

Storage = collections.namedtuple("Storage", "key dtype itemsize n")
View = collections.namedtuple("View", "storage offset shape strides")  # in elements


def rebuild_tensor(storage, offset, shape, strides, *_):
    return View(storage, offset, tuple(shape), tuple(strides))


def rebuild_parameter(view, *_):
    return view


CALLS = {("collections", "OrderedDict"): collections.OrderedDict,
         ("torch._utils", "_rebuild_tensor_v2"): rebuild_tensor,
         ("torch._utils", "_rebuild_parameter"): rebuild_parameter}


class StateDict(pickle.Unpickler):
    """Refuses everything that is no name, number, dict, tensor or storage."""

    def find_class(self, module, name):
        if (module, name) in CALLS:
            return CALLS[module, name]
        if module == "torch" and name in STORAGES:
            return name
        raise pickle.UnpicklingError(f"it names {module}.{name}")

    def persistent_load(self, pid):
        _, kind, key, _, n = pid
        return Storage(key, *STORAGES[kind], n)


def data_offset(file, member):
    """Where a stored member's bytes begin: its local header repeats the name, with an extra field of its own."""
    file.seek(member.header_offset)
    header = file.read(LOCAL_HEADER)
    if len(header) != LOCAL_HEADER or header[:4] != LOCAL_MAGIC or member.compress_type != zipfile.ZIP_STORED:
        raise ValueError(f"member {member.filename} cannot be read")
    name, extra = struct.unpack("<HH", header[26:30])
    return member.header_offset + LOCAL_HEADER + name + extra


def extent(view):
    """Elements from the first to behind the last that a tensor touches."""
    if 0 in view.shape:
        return 0
    return 1 + sum((n - 1) * stride for n, stride in zip(view.shape, view.strides))


def placed(views, archive, file):
    members = {info.filename: info for info in archive.infolist()}
    root = next(name for name in members if name.endswith("/data.pkl"))[:-len("data.pkl")]
    for name, view in views.items():
        if not isinstance(name, str) or not isinstance(view, View):
            raise ValueError(f"{str(name)[:60]!r} is no tensor")
        member, size = members[f"{root}data/{view.storage.key}"], view.storage.itemsize
        if min((view.offset, *view.shape, *view.strides)) < 0 or \
                (view.offset + extent(view)) * size > member.file_size:
            raise ValueError(f"tensor {name} lies outside its storage")
        at = data_offset(file, member) + view.offset * size
        yield name, view.storage.dtype, view.shape, at, tuple(s * size for s in view.strides)


def read(path):
    """[(name, dtype, shape, offset in the file, strides in bytes)]"""
    try:
        with zipfile.ZipFile(path) as archive, open(path, "rb") as file:
            pickled = next((n for n in archive.namelist() if n.endswith("/data.pkl")), None)
            if pickled is None:
                raise ValueError("it has no data.pkl")
            with archive.open(pickled) as stream:
                views = StateDict(stream, encoding="utf-8").load()
            if not isinstance(views, dict):
                raise ValueError(f"it pickles a {type(views).__name__}, not a dict")
            return list(placed(views, archive, file))
    except zipfile.BadZipFile:
        raise Broken(f"{path}: is damaged, or older than PyTorch 1.6's format: download it again, or load it with "
                     "torch.load and save it with torch.save") from None
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, EOFError, struct.error, OverflowError,
            pickle.UnpicklingError) as error:
        raise Broken(f"{path}: is no state dict ({error}); take the checkpoint's own .bin files") from None
