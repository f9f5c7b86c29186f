"""Serves `gs://bucket` from memory, at the port of 127.0.0.1 that is its argument; `conftest.py` starts it."""

import sys
import threading
from http import HTTPStatus

from gcp_storage_emulator import server
from gcp_storage_emulator.handlers import objects

emulated = objects.download


def download(request, response, storage, *arguments, **options):
    """Names the object's generation, as Google does and the emulator does not; TensorStore cannot do without."""
    emulated(request, response, storage, *arguments, **options)
    if response.status != HTTPStatus.NOT_FOUND:
        place = request.params["bucket_name"], request.params["object_id"]
        response["x-goog-generation"] = storage.get_file_obj(*place)["generation"]


if __name__ == "__main__":
    objects.download = download
    for _, handlers in server.HANDLERS:
        for method, handler in handlers.items():
            if handler is emulated:
                handlers[method] = download
    server.create_server("127.0.0.1", int(sys.argv[1]), in_memory=True, default_bucket="bucket").start()
    threading.Event().wait()
