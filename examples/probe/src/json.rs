//! The little JSON the probe writes and reads back, without a library.

use std::fmt::Write;

/// A JSON string with its quotes (RFC 8259, section 7).
pub fn string(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for letter in text.chars() {
        match letter {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            control if control < ' ' => {
                write!(out, "\\u{:04x}", u32::from(control)).expect("writing to a string cannot fail");
            }
            other => out.push(other),
        }
    }
    out.push('"');
    out
}

/// A number, or `null`.
pub fn number_or_null(number: Option<u64>) -> String {
    number.map_or_else(|| "null".to_owned(), |number| number.to_string())
}

/// The text of field `name` in a flat object as [`string`] writes it; none when the field is absent or is no string.
pub fn string_field(object: &str, name: &str) -> Option<String> {
    let (_, rest) = object.split_once(&format!("{}:\"", string(name)))?;
    let mut out = String::new();
    let mut letters = rest.chars();
    loop {
        match letters.next()? {
            '"' => return Some(out),
            '\\' => match letters.next()? {
                'n' => out.push('\n'),
                'r' => out.push('\r'),
                't' => out.push('\t'),
                'u' => {
                    let code: String = letters.by_ref().take(4).collect();
                    out.push(char::from_u32(u32::from_str_radix(&code, 16).ok()?)?);
                }
                escaped => out.push(escaped),
            },
            letter => out.push(letter),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{string, string_field};

    #[test]
    fn strings_come_back() {
        assert_eq!(string("a\"b\\c\n\u{1}ü"), "\"a\\\"b\\\\c\\n\\u0001ü\"");
        for text in ["web.1", "", "a\"b\\c\n\r\t\u{1}ü"] {
            let object = format!("{{\"node\":\"n1\",\"task\":{},\"pid\":1}}", string(text));
            assert_eq!(string_field(&object, "task").as_deref(), Some(text));
        }
        assert_eq!(string_field("{\"task\":1}", "task"), None);
        assert_eq!(string_field("{\"task\":\"cut", "task"), None);
    }
}
