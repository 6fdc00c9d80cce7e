//! Takes secrets out of text that callers wrote, before it is recorded. Pure.

use std::borrow::Cow;

/// How many bytes of a caller's text are kept in an event.
pub const TEXT_BYTES: usize = 512;

/// What a secret is replaced with.
const MASK: &str = "[scrubbed]";

/// Words in a name whose value, after `=`, `:` or a space, is a secret. Compared without case.
const SECRET_NAMES: [&str; 9] =
    ["token", "secret", "password", "passwd", "authorization", "bearer", "api-key", "auth-key", "access-key"];

/// Short names of secrets, which are words by themselves.
const SHORT_SECRET_NAMES: [&str; 3] = ["sig", "key", "pwd"];

/// Words longer than this that look random are taken for keys, whatever stands before them.
const KEY_LENGTH: usize = 40;

/// The text, cut to [`TEXT_BYTES`], without anything that looks like a key, token or password.
#[must_use]
pub fn command_line(text: &str) -> Cow<'_, str> {
    let text = bounded(text);
    if words(text).all(|word| matches!(word, Cow::Borrowed(_))) {
        return Cow::Borrowed(text);
    }
    Cow::Owned(words(text).collect::<Vec<_>>().join(" "))
}

/// The text's words, those that are secrets replaced.
fn words(text: &str) -> impl Iterator<Item = Cow<'_, str>> {
    let mut mask_next = false;
    text.split(' ').map(move |word| {
        let masked = if mask_next { Cow::Owned(MASK.to_owned()) } else { scrub_parts(word) };
        mask_next = announces_secret(word);
        masked
    })
}

/// The query of a request, without the values of parameters that are secrets.
#[must_use]
pub fn query(text: &str) -> String {
    bounded(text).split_inclusive(['&', ';', '?']).map(scrub_word).collect()
}

/// The text cut to at most [`TEXT_BYTES`] at a character boundary.
#[must_use]
pub fn bounded(text: &str) -> &str {
    let mut end = text.len().min(TEXT_BYTES);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.get(..end).unwrap_or_default()
}

/// A word part by part: a URL's parameters are parts of their own.
fn scrub_parts(word: &str) -> Cow<'_, str> {
    if !word.contains(['?', '&']) {
        return scrub_word(word);
    }
    Cow::Owned(word.split_inclusive(['?', '&']).map(scrub_word).collect())
}

fn scrub_word(word: &str) -> Cow<'_, str> {
    let bare = word.trim_end_matches(['&', ';', '?', '\'', '"', ',']);
    let tail = word.get(bare.len()..).unwrap_or_default();
    if let Some((name, value)) = bare.split_once(['=', ':'])
        && !value.is_empty()
        && (names_secret(name) || looks_like_key(value))
    {
        let separator = bare.get(name.len()..=name.len()).unwrap_or("=");
        return Cow::Owned(format!("{name}{separator}{MASK}{tail}"));
    }
    if looks_like_key(bare) { Cow::Owned(format!("{MASK}{tail}")) } else { Cow::Borrowed(word) }
}

fn names_secret(name: &str) -> bool {
    let name = name.trim_matches(['\'', '"', '-', ',', '(', '{']).to_ascii_lowercase().replace('_', "-");
    SHORT_SECRET_NAMES.contains(&name.as_str()) || SECRET_NAMES.iter().any(|secret| name.contains(secret))
}

/// Whether the word after this one is a secret: `--password hunter2`, `Authorization: Basic ...`. A path that ends
/// in `token` is none.
fn announces_secret(word: &str) -> bool {
    let is_option_or_header = word.starts_with('-') || word.ends_with([':', '=']);
    let is_scheme =
        ["bearer", "basic"].iter().any(|scheme| word.trim_matches(['\'', '"']).eq_ignore_ascii_case(scheme));
    let name = word.trim_end_matches([':', '=']);
    is_scheme || (is_option_or_header && !name.contains(['/', ':', '=']) && names_secret(name))
}

/// AWS access key ids, JSON web tokens, and long words of mixed letters and digits without the marks of a path.
fn looks_like_key(word: &str) -> bool {
    let word = word.trim_matches(['\'', '"']);
    let is_access_key = word.len() >= 16 && (word.starts_with("AKIA") || word.starts_with("ASIA"));
    let is_web_token = word.starts_with("eyJ") && word.contains('.');
    let random = |word: &str| {
        word.len() >= KEY_LENGTH
            && word.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+/=_-.".contains(&byte))
            && word.bytes().any(|byte| byte.is_ascii_digit())
            && word.bytes().any(|byte| byte.is_ascii_uppercase())
            && word.bytes().any(|byte| byte.is_ascii_lowercase())
            && !word.starts_with('/')
    };
    is_access_key || is_web_token || random(word)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_on_a_command_line_are_masked() {
        for (line, expected) in [
            ("curl -H X-aws-ec2-metadata-token: AQAEAL7", "curl -H X-aws-ec2-metadata-token: [scrubbed]"),
            ("curl -H X-aws-ec2-metadata-token:AQAEAL7", "curl -H X-aws-ec2-metadata-token:[scrubbed]"),
            ("env AWS_SECRET_ACCESS_KEY=abc x", "env AWS_SECRET_ACCESS_KEY=[scrubbed] x"),
            ("tool --password hunter2 --verbose", "tool --password [scrubbed] --verbose"),
            ("tool --token=t0p --verbose", "tool --token=[scrubbed] --verbose"),
            (
                "curl http://169.254.169.254/a?token=t0p&b=1",
                "curl http://169.254.169.254/a?token=[scrubbed]&b=1",
            ),
            ("curl -d client_secret=abc x", "curl -d client_secret=[scrubbed] x"),
            ("curl -H Authorization: Bearer abc x", "curl -H Authorization: [scrubbed] [scrubbed] x"),
            ("use AKIAIOSFODNN7EXAMPLE now", "use [scrubbed] now"),
            ("jwt eyJhbGciOiJIUzI1NiJ9.e30.sig", "jwt [scrubbed]"),
            ("key wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY00", "key [scrubbed]"),
        ] {
            assert_eq!(command_line(line), expected);
        }
    }

    #[test]
    fn ordinary_words_stay() {
        let line =
            "/usr/bin/python3 /usr/bin/cloud-init --all-stages http://169.254.169.254/latest/api/token";
        assert_eq!(command_line(line), line);
    }

    #[test]
    fn queries_keep_what_is_no_secret() {
        assert_eq!(
            query("api-version=2018-02-01&resource=https://vault.azure.net&sig=abc"),
            "api-version=2018-02-01&resource=https://vault.azure.net&sig=[scrubbed]"
        );
    }

    #[test]
    fn long_text_is_cut_at_a_character() {
        let text = "ä".repeat(TEXT_BYTES);
        assert!(bounded(&text).len() <= TEXT_BYTES);
    }
}
