//! Decides who a container's process is.
//!
//! In: the user as the spec or the image names it (`name`, `uid`, `name:group`, `uid:gid`) and the text of the image's own
//! `/etc/passwd` and `/etc/group`. Out: numbers. Never looks at the host's users; a name that the image does not know is refused.

/// Numbers for the process.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Identity {
    pub uid: u32,
    pub gid: u32,
    pub additional_gids: Vec<u32>,
    /// For `HOME`; `/` when the image does not know the user.
    pub home: String,
}

struct Account<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

struct Group<'a> {
    name: &'a str,
    gid: u32,
    members: &'a str,
}

/// The identity that `user` names; empty is root.
pub fn identify(user: &str, passwd: &str, group: &str) -> Result<Identity, String> {
    let (user, wanted_group) = match user.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (user, None),
    };
    let user = if user.is_empty() { "0" } else { user };
    let number = number(user);
    let account = accounts(passwd).find(|account| account.name == user || Some(account.uid) == number);
    let uid = match (&account, number) {
        (Some(account), _) => account.uid,
        (None, Some(uid)) => uid,
        (None, None) => return Err(format!("user {user:?} is not in the image's /etc/passwd; give a number or add the user to the image")),
    };
    let (gid, additional_gids) = match wanted_group.filter(|group| !group.is_empty()) {
        Some(wanted) => (group_id(wanted, group)?, Vec::new()),
        None => {
            let gid = account.as_ref().map_or(0, |account| account.gid);
            let name = account.as_ref().map(|account| account.name);
            (
                gid,
                groups(group).filter(|group| name.is_some_and(|name| group.members.split(',').any(|m| m == name))).map(|g| g.gid).collect(),
            )
        }
    };
    let home = account.map(|account| account.home).filter(|home| home.starts_with('/')).unwrap_or("/").to_owned();
    Ok(Identity { uid, gid, additional_gids, home })
}

fn group_id(wanted: &str, group: &str) -> Result<u32, String> {
    let number = number(wanted);
    groups(group)
        .find(|group| group.name == wanted || Some(group.gid) == number)
        .map(|group| group.gid)
        .or(number)
        .ok_or_else(|| format!("group {wanted:?} is not in the image's /etc/group; give a number or add the group to the image"))
}

/// A plain decimal number below 2³² - 1; `+1`, `-1` and the value that means "no change" to the kernel are none.
fn number(text: &str) -> Option<u32> {
    let plain = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    plain.then(|| text.parse().ok()).flatten().filter(|number| *number != u32::MAX)
}

fn accounts(passwd: &str) -> impl Iterator<Item = Account<'_>> {
    passwd.lines().filter_map(|line| {
        let fields: Vec<&str> = line.split(':').collect();
        let [name, _, uid, gid, _, home, ..] = fields[..] else { return None };
        Some(Account { name, uid: number(uid)?, gid: number(gid)?, home })
    })
}

fn groups(group: &str) -> impl Iterator<Item = Group<'_>> {
    group.lines().filter_map(|line| {
        let fields: Vec<&str> = line.split(':').collect();
        let [name, _, gid, members, ..] = fields[..] else { return None };
        Some(Group { name, gid: number(gid)?, members })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nbad line\nweb:x:33:34:web:/srv:/bin/false\n7up:x:700:700::/:\n";
    const GROUP: &str = "root:x:0:\nwww:x:34:\nlogs:x:40:web,other\n";

    fn check(user: &str, expected: &str) {
        let text = match identify(user, PASSWD, GROUP) {
            Ok(identity) => format!("{}:{} {:?} {}", identity.uid, identity.gid, identity.additional_gids, identity.home),
            Err(why) => why,
        };
        assert_eq!(text, expected, "{user:?}");
    }

    #[test]
    fn users_and_groups_are_those_of_the_image() {
        check("", "0:0 [] /root");
        check("web", "33:34 [40] /srv");
        check("33", "33:34 [40] /srv");
        check("web:logs", "33:40 [] /srv");
        check("1000:1001", "1000:1001 [] /");
        check("1000", "1000:0 [] /");
        check("7up", "700:700 [] /");
    }

    #[test]
    fn what_the_image_does_not_know_is_refused() {
        check("nobody", "user \"nobody\" is not in the image's /etc/passwd; give a number or add the user to the image");
        check("+1", "user \"+1\" is not in the image's /etc/passwd; give a number or add the user to the image");
        check("4294967296", "user \"4294967296\" is not in the image's /etc/passwd; give a number or add the user to the image");
        check("web:staff", "group \"staff\" is not in the image's /etc/group; give a number or add the group to the image");
    }
}
