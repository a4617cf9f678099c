//! What a user is called (passwd(5)).
//!
//! In: the text of `/etc/passwd` and a user's id. Out: the name, or `#ID` if there is none. Never reads the file.

/// The first field of the first line whose third is the user.
pub fn name(passwd: &str, uid: u32) -> String {
    let of_user = |line: &str| {
        let mut fields = line.split(':');
        let name = fields.next().filter(|name| !name.is_empty())?;
        (fields.nth(1)?.parse() == Ok(uid)).then(|| name.to_owned())
    };
    passwd.lines().find_map(of_user).unwrap_or_else(|| format!("#{uid}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_has_a_name_or_a_number() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\nbroken\n:x:7:7::/:/bin/sh\nweb:x:7:7::/srv:/bin/sh\ntwin:x:7:7::/srv:/bin/sh\n";
        assert_eq!([0, 7, 9].map(|uid| name(passwd, uid)), ["root", "web", "#9"]);
        assert_eq!(name("", 0), "#0");
    }
}
