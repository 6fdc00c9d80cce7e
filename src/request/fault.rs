//! Why a request has no single meaning. Each fault has a stable code that audit events carry.

/// Writes the enum, its codes and its messages from one table, so that no variant can lack either.
macro_rules! faults {
    ($($name:ident $code:literal $message:literal)*) => {
        /// A reason why a request is refused before any policy is asked.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Fault {
            $(
                #[doc = $message]
                $name,
            )*
        }

        impl Fault {
            /// Every fault, in the order of declaration.
            pub const ALL: &[Fault] = &[$(Fault::$name),*];

            /// The stable code that audit events and policies carry.
            #[must_use]
            pub fn code(self) -> &'static str {
                match self {
                    $(Self::$name => $code,)*
                }
            }

            /// One line that tells the caller what is wrong.
            #[must_use]
            pub fn message(self) -> &'static str {
                match self {
                    $(Self::$name => $message,)*
                }
            }
        }
    };
}

faults! {
    // Limits.
    HeadTooLarge "head-too-large" "the request's head is too large"
    TooManyHeaders "too-many-headers" "the request has too many headers"
    ChunkOverhead "chunk-overhead" "the chunk extensions or trailers are too large"

    // Framing: two parsers could disagree on where the head or the body ends.
    HeadIncomplete "head-incomplete" "the request's head has no end"
    LeadingBlankLines "leading-blank-lines" "more than one empty line comes before the request line"
    BareLf "bare-lf" "a line ends without a carriage return"
    BareCr "bare-cr" "a carriage return is not followed by a line feed"
    ControlByte "control-byte" "the head holds a control byte"
    RequestLineMalformed "request-line-malformed" "the request line is not a method, a target and a version, one space apart"
    MethodInvalid "method-invalid" "the method is not an upper-case token"
    VersionUnsupported "version-unsupported" "the version is neither HTTP/1.0 nor HTTP/1.1"
    Http2Preface "http2-preface" "the connection starts with HTTP/2"
    TargetUnacceptable "target-unacceptable" "the request target holds a byte or a form that no URI may have"
    ConnectMethod "connect-method" "CONNECT is not served here"
    TraceMethod "trace-method" "TRACE is not served here"
    Upgrade "upgrade" "the connection may not change its protocol"
    LineFolding "line-folding" "a header continues on the next line"
    HeaderWithoutColon "header-without-colon" "a header line has no colon"
    SpaceBeforeColon "space-before-colon" "a header has a space before its colon"
    HeaderNameEmpty "header-name-empty" "a header has no name"
    HeaderNameInvalid "header-name-invalid" "a header's name is not a token"
    ConfusableFramingHeader "confusable-framing-header" "a header could be taken for Content-Length or Transfer-Encoding"
    LengthAndEncoding "length-and-encoding" "the request has both Content-Length and Transfer-Encoding"
    ContentLengthRepeated "content-length-repeated" "Content-Length occurs more than once"
    ContentLengthInvalid "content-length-invalid" "Content-Length is not a plain number"
    TransferEncodingRepeated "transfer-encoding-repeated" "Transfer-Encoding occurs more than once"
    TransferEncodingUnsupported "transfer-encoding-unsupported" "Transfer-Encoding is not exactly chunked"
    TransferEncodingOld "transfer-encoding-old" "HTTP/1.0 has no Transfer-Encoding"
    ChunkSizeInvalid "chunk-size-invalid" "a chunk's size is not 1 to 15 hexadecimal digits"
    ChunkFraming "chunk-framing" "a chunk does not end where its size says"
    ChunkExtension "chunk-extension" "a chunk has an extension"
    Trailers "trailers" "the body has trailers"
    TrailerInvalid "trailer-invalid" "a trailer is not a well-formed header"

    // Hygiene: the head has one meaning, but no client of a metadata service needs it.
    ForwardingHeader "forwarding-header" "a header speaks for another client, as requests through a proxy do"
    OverrideHeader "override-header" "a header names another path or host than the request"
    ConnectionToken "connection-token" "Connection names a header that is not about the connection"
    MethodUnknown "method-unknown" "no metadata service knows this method"
    HeaderRepeated "header-repeated" "a header that may occur once is repeated"
    HeaderConfusable "header-confusable" "a header's name differs from a known one by punctuation only"
    BodyOnRead "body-on-read" "a GET or HEAD has a body"
    ExpectUnsupported "expect-unsupported" "Expect names something other than 100-continue"

    // Host: which service is meant.
    HostMissing "host-missing" "the request has no Host"
    HostEmpty "host-empty" "Host is empty"
    HostRepeated "host-repeated" "Host occurs more than once"
    HostMalformed "host-malformed" "Host is not an address or a name with an optional port"
    HostConflict "host-conflict" "the request target names another host than Host"
    HostForeign "host-foreign" "Host names another service than the address that was asked"

    // Target: two servers could disagree on which resource is meant.
    AuthorityForm "authority-form" "the request target is a host, not a path"
    AsteriskForm "asterisk-form" "the request target is an asterisk"
    SchemeUnsupported "scheme-unsupported" "the request target's scheme is not http"
    Userinfo "userinfo" "the request target names a user"
    Fragment "fragment" "the request target has a fragment"
    PercentMalformed "percent-malformed" "the path holds a percent sign without two hexadecimal digits"
    DoubleEncoding "double-encoding" "the path is encoded more than once"
    EncodedNul "encoded-nul" "the path holds an encoded NUL"
    EncodedControl "encoded-control" "the path holds an encoded control character"
    EncodedSlash "encoded-slash" "the path holds an encoded slash"
    Backslash "backslash" "the path holds a backslash"
    EncodedDelimiter "encoded-delimiter" "the path holds an encoded question mark or number sign"
    PathParameter "path-parameter" "the path holds a semicolon"
    Utf8Invalid "utf8-invalid" "the path is not UTF-8 once decoded"
    AboveRoot "above-root" "the path climbs above its root"
    DotDotAndEmptySegment "dot-dot-and-empty-segment" "the path has both a double slash and a dot-dot segment"
    DoubleSlashAuthority "double-slash-authority" "the path starts with a double slash and an address"
    SegmentEdge "segment-edge" "a path segment starts with a space, or ends with a dot or a space"
    QueryPercentMalformed "query-percent-malformed" "the query holds a percent sign without two hexadecimal digits"
    QueryDoubleEncoding "query-double-encoding" "the query is encoded more than once"
    QueryControl "query-control" "the query holds an encoded control character"
    QueryUtf8Invalid "query-utf8-invalid" "the query is not UTF-8 once decoded"
    QueryKeyNotAscii "query-key-not-ascii" "a query key is not ASCII"
    QueryTraversal "query-traversal" "the query holds a dot-dot path segment"
    QueryMethodOverride "query-method-override" "the query names another method than the request"
}

impl Fault {
    /// Whether the request is merely too large, so that 431 or 413 is the honest answer and not 400.
    #[must_use]
    pub fn is_limit(self) -> bool {
        matches!(self, Self::HeadTooLarge | Self::TooManyHeaders | Self::ChunkOverhead)
    }
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.message())
    }
}

#[cfg(test)]
mod tests {
    use super::Fault;
    use std::collections::BTreeSet;

    #[test]
    fn codes_are_kebab_case_and_unique_and_messages_are_one_line() {
        let codes: BTreeSet<&str> = Fault::ALL.iter().map(|fault| fault.code()).collect();
        assert_eq!(codes.len(), Fault::ALL.len());
        for fault in Fault::ALL {
            let code = fault.code();
            assert!(
                code.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-'),
                "{code}"
            );
            assert!(!code.starts_with('-') && !code.ends_with('-') && !code.contains("--"), "{code}");
            let message = fault.message();
            assert!(!message.contains('\n') && !message.ends_with('.') && !message.is_empty(), "{message}");
        }
    }

    #[test]
    fn only_sizes_are_limits() {
        let limits: Vec<&str> = Fault::ALL.iter().filter(|f| f.is_limit()).map(|f| f.code()).collect();
        assert_eq!(limits, ["head-too-large", "too-many-headers", "chunk-overhead"]);
    }
}
