"""Refuse in the words of providers."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping

from crashproof.testing.teacher_server.faults import Fault
from crashproof.testing.teacher_server.http_stub import Response
from crashproof.testing.teacher_server.questions import Refused, error_response

__all__ = ["PROVIDER_REFUSALS", "check_parameters"]

_DAILY_QUOTA = {
    "code": 429,
    "message": "You exceeded your current quota, please check your plan. Please retry in 34.07s.",
    "status": "RESOURCE_EXHAUSTED",
    "details": [
        {
            "@type": "type.googleapis.com/google.rpc.QuotaFailure",
            "violations": [{"quotaId": "GenerateRequestsPerDayPerProjectPerModel-FreeTier", "quotaValue": "50"}],
        },
        {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "34s"},
    ],
}

PROVIDER_REFUSALS: Mapping[Fault, Response] = {
    Fault.RATE_LIMITED_IN_WORDS: error_response(
        429, "Rate limit reached on requests per min (RPM): Limit 3, Used 3. Please try again in 20ms.", code="rate"
    ),
    Fault.LONG_WAIT: error_response(429, "Too many requests.", headers={"retry-after": "18000"}),
    Fault.DAILY_QUOTA: Response(status=429, pieces=(json.dumps([{"error": _DAILY_QUOTA}]).encode(),)),
    Fault.EMPTY_BALANCE: error_response(402, "Insufficient Balance", code="invalid_request_error"),
    Fault.EMPTY_BALANCE_AS_400: error_response(
        400, "Your credit balance is too low to access the API. Please go to Plans & Billing."
    ),
    Fault.BAD_KEY_AS_400: error_response(400, "API key not valid. Please pass a valid API key."),
    Fault.NO_MODEL_AS_400: error_response(400, "Model Not Exist"),
    Fault.WRONG_REGION: error_response(
        403, "Country, region, or territory not supported", code="unsupported_country_region_territory"
    ),
}
"""The whole response for each fault."""


def check_parameters(body: Mapping[str, object], *, refuses: Collection[str], only_streams: bool) -> None:
    """Refuse a request that has one of these parameters, or does not ask for a stream.

    Raises:
        Refused: in the words of a provider.
    """
    for name in refuses:
        if name in body:
            other = {"max_tokens": "max_completion_tokens", "max_completion_tokens": "max_tokens"}.get(name)
            instead = "" if other is None else f" Use {other!r} instead."
            message = f"Unsupported parameter: {name!r} is not supported with this model.{instead}"
            raise Refused(400, message, code="unsupported_parameter", parameter=name)
    if only_streams and body.get("stream") is not True:
        message = "This model only support stream mode, please enable the stream parameter to access the model."
        raise Refused(400, message, code="invalid_parameter_error")
