"""Few distinct batch widths instead of one for every length: what a recorded GPU step needs."""

from __future__ import annotations

_FINEST = 8


def bucket_length(length: int, longest: int) -> int:
    """The width, in tokens, that rows of ``length`` tokens are padded to; never more than ``longest``.

    Multiples of 8 up to 64 tokens (a batch of 16 rows then fills whole tiles of 128 in every matrix
    product), of 16 up to 128, of 32 up to 256 and so on: four widths an octave, 20 in all up to 512, and
    beyond 32 tokens at most a quarter more than ``length``. ``longest`` is the number of positions that the
    encoder has. Raises ValueError when ``length`` exceeds it or is not positive.
    """
    if not 0 < length <= longest:
        raise ValueError(f"{length} tokens do not fit the encoder's {longest} positions")
    octave = (length - 1).bit_length()  # 2 ** octave is the smallest power of two not below length
    step = max(_FINEST, (1 << octave) // _FINEST)
    return min(-(-length // step) * step, longest)
