"""Every way openbr can fail, and whose fault it is.

In: nothing. Out: exceptions. The rule that lives only here: status, wire type, code, and
whether a failure may be retried or stepped around are facts of the class.

    OpenbrError
      ConfigError                   at start: file, key, value, reason; exit code 2
      RequestError                  the caller's: never retried
        InvalidRequestError 400       AuthenticationError 401     ForbiddenError 403
        UnknownModelError 404         NotFoundError 404           MethodNotAllowedError 405
        TooLargeError 413             UnsupportedEncodingError 415  WrongHostError 421
        RateLimitedError 429          QuotaExceededError 429
      UpstreamError                 the provider's: provider, upstream_status
        UpstreamUnavailableError 502  retryable, fallback: refused, reset, DNS, 5xx
        UpstreamTimeoutError 504      retryable, fallback
        UpstreamRateLimitError 429    retryable, fallback
        UpstreamCredentialError 502   fallback: our key was refused
        UpstreamProtocolError 502     fallback: an answer we cannot read
        UpstreamRejectedError 4xx     neither: the request itself is at fault
      StreamInterruptedError 502    after the first content: an error event ends the stream
      ServiceUnavailableError 503   ours: draining, overloaded, no model ready, store down
"""

from __future__ import annotations


class OpenbrError(Exception):
    """The base of every failure openbr names. The message says what happened and what to do."""

    status = 500
    type = "server_error"
    code: str | None = None
    retryable = False
    fallback = False

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.retry_after_s = retry_after_s
        if code is not None:
            self.code = code


class ConfigError(OpenbrError):
    """openbr cannot start as asked. The CLI prints the message on one line and exits with 2."""


class RequestError(OpenbrError):
    status = 400
    type = "invalid_request_error"


class InvalidRequestError(RequestError):
    pass


class AuthenticationError(RequestError):
    status = 401
    type = "authentication_error"
    code = "invalid_api_key"


class ForbiddenError(RequestError):
    status = 403
    type = "permission_error"


class NotFoundError(RequestError):
    status = 404
    code = "not_found"


class UnknownModelError(RequestError):
    status = 404
    code = "model_not_found"

    def __init__(self, message: str) -> None:
        super().__init__(message, param="model")


class MethodNotAllowedError(RequestError):
    status = 405
    code = "method_not_allowed"

    def __init__(self, message: str, *, allow: str) -> None:
        super().__init__(message)
        self.allow = allow


class TooLargeError(RequestError):
    status = 413
    code = "request_too_large"


class UnsupportedEncodingError(RequestError):
    status = 415
    code = "unsupported_encoding"


class WrongHostError(RequestError):
    status = 421
    code = "wrong_host"


class RateLimitedError(RequestError):
    status = 429
    type = "rate_limit_error"
    code = "rate_limit_exceeded"


class QuotaExceededError(RequestError):
    status = 429
    type = "insufficient_quota"
    code = "insufficient_quota"


class UpstreamError(OpenbrError):
    """A provider failed. `reason` is one of the catalogue's reasons (UI words hang on it):
    refused, timeout, dns, tls, auth, quota, server, protocol, disabled, no_key."""

    status = 502
    type = "upstream_error"
    reason = "server"

    def __init__(
        self,
        message: str,
        *,
        provider: str = "",
        reason: str | None = None,
        upstream_status: int | None = None,
        code: str | None = None,
        param: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message, code=code, param=param, retry_after_s=retry_after_s)
        self.provider = provider
        self.upstream_status = upstream_status
        if reason is not None:
            self.reason = reason


class UpstreamUnavailableError(UpstreamError):
    retryable = True
    fallback = True
    code = "upstream_unavailable"


class UpstreamTimeoutError(UpstreamError):
    status = 504
    type = "upstream_timeout"
    reason = "timeout"
    retryable = True
    fallback = True
    code = "upstream_timeout"


class UpstreamRateLimitError(UpstreamError):
    status = 429
    type = "rate_limit_error"
    reason = "quota"
    retryable = True
    fallback = True
    code = "rate_limit_exceeded"


class UpstreamCredentialError(UpstreamError):
    reason = "auth"
    fallback = True
    code = "upstream_auth_error"


class UpstreamProtocolError(UpstreamError):
    reason = "protocol"
    fallback = True
    code = "upstream_protocol_error"


class UpstreamRejectedError(UpstreamError):
    """The upstream says that the request is wrong: its status and words go to the caller."""

    type = "invalid_request_error"
    reason = "rejected"

    def __init__(
        self,
        message: str,
        *,
        status: int,
        type: str | None = None,
        code: str | None = None,
        param: str | None = None,
        provider: str = "",
    ) -> None:
        super().__init__(message, provider=provider, upstream_status=status, code=code, param=param)
        self.status = status
        if type is not None:
            self.type = type


class StreamInterruptedError(UpstreamError):
    """The answer broke after content was sent: no retry, no fallback, an error event."""

    reason = "interrupted"
    code = "stream_interrupted"


class ServiceUnavailableError(OpenbrError):
    status = 503
    type = "service_unavailable"
    code = "service_unavailable"
