"""A VAE that decodes the same clip in less memory: diffusers' own modules, without their largest copies.

diffusers decodes a latent frame (four frames of the clip) at a time, yet needs 10 GiB for it at 720p. Nearest
upsampling goes through float32, so does every norm; each convolution copies its input twice, to put the frames before
it and zeros around it; each latent frame copies the whole clip so far. Leaving that out changes no bit.

In tiles it takes less still. A tile is decoded with as much around it as its pixels depend on, and the attention,
in which each pixel depends on all, is done before. So there are no seams, and nothing to blend.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from diffusers.models.autoencoders import autoencoder_kl_wan as wan
from diffusers.models.autoencoders.vae import DecoderOutput
from torch.nn import functional

from wanstore.memory._tiles import Tile, cut
from wanstore.presets import SPATIAL, TEMPORAL

_STRIP_ROWS = 128


class AutoencoderKLWan(wan.AutoencoderKLWan):  # type: ignore[misc]
    """diffusers' own; a clip is decoded in `tiles`, and inside the block that `around_decode()` opens, if it is set."""

    tiles = 1
    around_decode: Callable[[], AbstractContextManager[None]] | None = None

    def decode(self, z: torch.Tensor, return_dict: bool = True) -> Any:
        """As diffusers' `decode`: latents, batch × 16 × frames × height × width, to frames from -1 to 1."""
        with self.around_decode() if self.around_decode else nullcontext():
            return super().decode(z, return_dict)

    def _decode(self, z: torch.Tensor, return_dict: bool = True) -> Any:
        if self.use_tiling or self.config.patch_size is not None:
            return super()._decode(z, return_dict)
        x = self.post_quant_conv(z)
        batch, _, count, height, width = x.shape
        channels = self.decoder.conv_out.out_channels
        out = x.new_empty(batch, channels, 1 + TEMPORAL * (count - 1), SPATIAL * height, SPATIAL * width)
        tiles = cut(height, width, self.tiles)
        convolutions = self._cached_conv_counts["decoder"]
        middle: list[Any] = [None] * convolutions
        kept: list[torch.Tensor] = []
        for tile in tiles:
            cache: list[Any] = [None] * convolutions
            for number in range(count):
                if tile is tiles[0]:
                    held = _through_middle(self.decoder, x[:, :, number : number + 1], middle)
                    kept += [held] if len(tiles) > 1 else []
                else:
                    held = kept[number]
                frames = _upwards(self.decoder, _part(held, tile), cache)
                first = 0 if number == 0 else 1 + TEMPORAL * (number - 1)
                _put(frames.clamp_(-1.0, 1.0), tile, out[:, :, first : first + frames.shape[2]])
        return DecoderOutput(sample=out) if return_dict else (out,)


def make_lean(vae: Any) -> None:
    """Have the VAE, one of diffusers', decode with less memory. Parameters, config and names stay as they are."""
    for module in (vae, *vae.decoder.modules()):
        module.__class__ = _LEAN.get(type(module), type(module))


def _part(x: torch.Tensor, tile: Tile) -> torch.Tensor:
    """What is decoded for the tile, as a copy."""
    part = x[..., slice(*tile.around_rows), slice(*tile.around_columns)]
    return part.clone(memory_format=torch.contiguous_format)


def _put(frames: torch.Tensor, tile: Tile, out: torch.Tensor) -> None:
    """Put the tile's own pixels of the decoded frames where they belong."""
    place, part = [], []
    for (first, stop), (around, _) in ((tile.rows, tile.around_rows), (tile.columns, tile.around_columns)):
        place.append(slice(SPATIAL * first, SPATIAL * stop))
        part.append(slice(SPATIAL * (first - around), SPATIAL * (stop - around)))
    out[..., place[0], place[1]] = frames[..., part[0], part[1]]


def _through_middle(decoder: Any, x: torch.Tensor, cache: list[Any]) -> torch.Tensor:
    """One latent frame up to the attention and the block after it, as `WanDecoder3d.forward` has it."""
    kept = x.clone()
    if cache[0] is not None:
        kept = torch.cat([cache[0][:, :, -1:], kept], dim=2)
    x = decoder.conv_in(x, cache[0])
    cache[0] = kept
    through: torch.Tensor = decoder.mid_block(x, feat_cache=cache, feat_idx=[1])
    return through


def _upwards(decoder: Any, x: torch.Tensor, cache: list[Any]) -> torch.Tensor:
    """From there to the frames."""
    at = [0]
    for block in decoder.up_blocks:
        x = block(x, feat_cache=cache, feat_idx=at)
    padded = _padded(x, decoder.norm_out, decoder.conv_out, cache, at)
    del x
    return torch.nn.Conv3d.forward(decoder.conv_out, padded)


def _padded(x: torch.Tensor, norm: Any, conv: Any, cache: list[Any], at: list[int]) -> torch.Tensor:
    """The convolution's input: `x` normed and activated, the cached frames before it, and zeros around."""
    left, right, top, bottom, before, _ = conv._padding
    batch, channels, frames, height, width = x.shape
    padded = x.new_zeros(batch, channels, before + frames, top + height + bottom, left + width + right)
    inner = padded[..., top : top + height, left : left + width]
    number = at[0]
    cached = cache[number]
    known = 0 if cached is None else cached.shape[2]
    if known:
        inner[:, :, before - known : before] = cached
    for frame in range(frames):
        for row in range(0, height, _STRIP_ROWS):
            strip = (slice(None), slice(None), slice(frame, frame + 1), slice(row, row + _STRIP_ROWS))
            place = (slice(None), slice(None), slice(before + frame, before + frame + 1), strip[3])
            inner[place] = functional.silu(norm(x[strip]), inplace=True)
    cache[number] = inner[:, :, max(before + frames - wan.CACHE_T, before - known) :].clone()
    at[0] += 1
    return padded


class _ResidualBlock(wan.WanResidualBlock):  # type: ignore[misc]
    """Norm and activation go strip by strip to where the convolution wants its input."""

    def forward(self, x: torch.Tensor, feat_cache: Any = None, feat_idx: Any = None) -> torch.Tensor:
        given, shortcut = x, self.conv_shortcut(x)
        x = torch.nn.Conv3d.forward(self.conv1, _padded(x, self.norm1, self.conv1, feat_cache, feat_idx))
        padded = _padded(x, self.norm2, self.conv2, feat_cache, feat_idx)
        del x
        x = torch.nn.Conv3d.forward(self.conv2, padded).add_(shortcut)
        given.untyped_storage().resize_(0)  # callers hold it until all their blocks are done, but read it no more
        return x


class _Upsample(wan.WanUpsample):  # type: ignore[misc]
    """Nearest copies values: no dtype is better for that than their own."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.Upsample.forward(self, x)


_LEAN = {
    wan.AutoencoderKLWan: AutoencoderKLWan,
    wan.WanResidualBlock: _ResidualBlock,
    wan.WanUpsample: _Upsample,
}
