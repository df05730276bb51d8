"""The most frequent function words of languages in Latin script, to tell them apart (`rewards.language`).

A word of several languages stands in each of them. English also has words here that are common in solutions and
function words elsewhere (plus, per, die, sin): they must not make an English solution look foreign.
"""

_LISTS = {
    "en": """
        the of and to in is that it for as was with be by on not he his but at are this have from or had an they which
        one you were all her she there would their we him been has when who will no more if out so up said what its
        about than into them can only other time new some could these two may first then do any my now such like our
        over me even most after also did many off before must well back through years where much your way down should
        because each just those how too good very make still own see work here get both between being under since
        against am let find need know given thus hence therefore every
    """,
    "fr": """
        le la les un une des du de et est en que qui dans ce il elle au aux pour pas sur par je ne se vous nous ils
        elles avec tout tous toute toutes mais ont sont été être avoir fait faire comme donc alors ainsi puis ensuite
        cette ces cet sa ses leur leurs mon ma mes notre nos votre vos lui eux même mêmes aussi bien très peut peu
        plus plusieurs car or son sans sous entre après avant quand où dont si ou ni soit était avait ai as avons
        ayant deux trois quatre chaque celui celle ceux cela ça faut on obtient trouve calcule égal égale calculons
        trouvons premier première quel quelle
    """,
    "de": """
        der die das und ist nicht ein eine einen einem einer eines den dem des zu von mit sich auf für in im es an als
        auch so will am man war hat nach wie wir er sie ich aber aus bei oder sind wird werden wurde haben hatte habe
        kann können muss müssen nur noch über zum zur vom beim durch wenn dann dass weil damit daher somit daraus also
        nun jetzt hier dort diese dieser dieses diesen diesem jede jeder jedes jeden alle alles mehr sehr zwei drei
        vier zuerst zunächst ergibt erhalten unser unsere ihr ihre sein seine keine kein schon zwischen unter vor ohne
        gegen bis bereits welche welcher gilt folgt gleich ins uns denn doch
    """,
    "es": """
        el la los las un una unos unas de del al que en es se no por sin tan son con para su sus lo como más pero este
        esta estos estas eso esa ese esto ya hay está están ser fue era han ha había tiene tienen tenemos entonces
        luego así cuando donde porque si sobre entre también muy todo todos toda todas cada uno dos tres cuatro cinco
        mi nos nosotros ellos ella él yo le les me te qué cuál cual cuántos cuántas ahora primero después antes desde
        hasta hacia según mismo misma otro otra otros otras nada algo poco mucho puede pueden podemos debe debemos
        hacer igual ni
    """,
    "it": """
        il lo la gli le un uno una di del dello della dei degli delle da dal dalla dai in nel nella nei nelle con su
        sul sulla per tra come due fra che chi cui non si è sono sia essere ha hanno abbiamo ho più ma anche se quando
        dove perché poi quindi allora così dunque ora prima dopo questo questa questi queste quello quella quelli ogni
        tutto tutti tutta tutte tre quattro cinque molto poco suo sua suoi loro nostro noi voi lui lei io mi ci vi ne
        al alla ai agli alle allo ed od già ancora solo stesso stessa altro altra altri può possono possiamo deve
        dobbiamo fare
    """,
    "pt": """
        os as um uma uns umas de do da dos das em no na nos nas ao aos à às por pelo pela com para que se não mais mas
        como este esta estes estas isso esse essa isto aquele já há são está estão ser foi era tem têm temos então
        depois antes assim quando onde porque sobre entre sem também muito todo todos toda todas cada dois duas três
        quatro cinco meu minha seu sua seus suas eles ela ele elas eu nós lhe me te qual quais quantos quantas agora
        primeiro até desde mesmo mesma outro outra outros outras nada algo pouco pode podem podemos deve devemos fazer
        igual nem ou
    """,
}
_ALSO_ENGLISH = """
    plus minus per die dice sin tan con pro car man men war hat bin son sole pour come due ad ai si mi non ha am fine
    fare made era sea fort ten
"""
FUNCTION_WORDS = {language: frozenset(text.split()) for language, text in _LISTS.items()}
FUNCTION_WORDS["en"] |= frozenset(_ALSO_ENGLISH.split())
LANGUAGES_OF: dict[str, tuple[str, ...]] = {
    word: tuple(language for language, words in FUNCTION_WORDS.items() if word in words)
    for words in FUNCTION_WORDS.values()
    for word in words
}
