// What scrolls sideways can be scrolled by the keyboard, the menu of a narrow screen can be reached by it, and what search and
// menu are called is said to who cannot see them.
document$.subscribe(() => {
  document.querySelector(".md-search").setAttribute("aria-label", "Search");

  const menu = document.querySelector(".md-header label[for=__drawer]");
  menu.title = "Menu";
  menu.tabIndex = 0;

  const mark = () => {
    for (const part of document.querySelectorAll("pre > code, .md-typeset__scrollwrap, .md-typeset__table")) {
      if (part.scrollWidth > part.clientWidth) part.tabIndex = 0;
      else part.removeAttribute("tabindex");
    }
  };
  requestAnimationFrame(mark);
  addEventListener("resize", mark);
});
