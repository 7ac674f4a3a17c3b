"""A household's usual level, and a history without gaps for a network's input."""

import torch
from torch import Tensor

from ml.models.history.config import HistoryFeatureConfig
from ml.models.history.numerics import sort_last_dim


def usual_level_kwh(history: Tensor, config: HistoryFeatureConfig) -> Tensor:
    """Return the usual level `[B]` of nights `[B, N, 48]`, kWh per half-hour, NaN where missing.

    The median over nights of their mean reading; nights with fewer readings than
    `min_observed_half_hours` do not count. `min_level_kwh` where no night counts, and at least.
    """
    is_counted = (~history.isnan()).sum(dim=2) >= config.min_observed_half_hours
    # Nights that do not count are sorted to the end, so the median is the middle of the others.
    means = sort_last_dim(torch.where(is_counted, history.nanmean(dim=2), torch.inf))
    middle = (is_counted.sum(dim=1, keepdim=True) - 1).clamp(min=0) // 2
    median = means.gather(1, middle)[:, 0]
    return torch.where(median.isinf(), 0.0, median).clamp(min=config.min_level_kwh)


def impute_history(
    history: Tensor,
    level: Tensor,
    config: HistoryFeatureConfig,
    dtype: torch.dtype = torch.float64,
) -> Tensor:
    """Return nights `[B, N, 48]` (kWh) without gaps, in the dtype of `history`.

    A missing half-hour gets the mean of that half-hour over the other nights. A night with fewer
    readings than `min_observed_half_hours` is replaced by a whole usable night: k nights from the
    end by the k-th latest usable one, and round again where they are fewer, so that replaced nights
    differ from one another as real ones do. A household without a usable night gets its `level`
    `[B]` (kWh) everywhere.

    `dtype` is the precision in which means are computed.
    """
    is_usable = (~history.isnan()).sum(dim=2) >= config.min_observed_half_hours
    usable = torch.where(is_usable[:, :, None], history, torch.nan)
    mean = usable.to(dtype).nanmean(dim=1, keepdim=True).to(history.dtype)
    mean = torch.where(mean.isnan(), level[:, None, None], mean)
    filled = torch.where(history.isnan(), mean, history)
    n_nights = history.shape[1]
    nights_from_end = torch.arange(n_nights - 1, -1, -1, device=history.device)
    # Usable nights sort first, the latest leading: adding N puts all others behind them.
    latest_first = torch.where(is_usable, nights_from_end, nights_from_end + n_nights).argsort(
        dim=1
    )
    n_usable = is_usable.sum(dim=1, keepdim=True).clamp(min=1)
    replacement = latest_first.gather(1, nights_from_end % n_usable)
    source = torch.where(is_usable, n_nights - 1 - nights_from_end, replacement)
    return filled.gather(1, source[:, :, None].expand_as(filled))
