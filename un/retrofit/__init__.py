"""Takes the norms out of a trained model, without training: closed-form maps per channel in their place."""

from un.retrofit.calibration import retrofit
from un.retrofit.report import RetrofitReport, RetrofitRow

__all__ = ["RetrofitReport", "RetrofitRow", "retrofit"]
